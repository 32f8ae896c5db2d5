"""What the test tiers share: clusters, the operator as a process, waiting for conditions."""
