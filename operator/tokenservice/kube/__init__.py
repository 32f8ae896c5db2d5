"""Access to the Kubernetes API: client, server-side apply, informer, leader election, events."""
