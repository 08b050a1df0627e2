"""The networks of arXiv 2508.00234, for comparison."""
