"""What legal IR is, and whether two models compute the same."""
