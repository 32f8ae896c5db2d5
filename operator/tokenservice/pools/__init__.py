"""WarmPools: how many pods wait for a model, which, and how the pool says so."""
