"""ImageNet-C's corruptions and their strengths."""
