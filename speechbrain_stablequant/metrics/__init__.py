"""What a score is, and how far to trust it: sums, intervals, error rates."""
