"""What any controller needs, whatever it controls: keyed queue, reconcile loop, logs, metrics, health."""
