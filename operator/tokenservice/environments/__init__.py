"""CondaEnvironment: canonical form and hash, plan, Jobs."""
