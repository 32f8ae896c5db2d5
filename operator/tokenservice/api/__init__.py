"""Every name that users, templates and other programs see: types, labels, annotations, conditions."""
