"""Several schemes over the same partitions, seeds and initial weights, with intervals."""
