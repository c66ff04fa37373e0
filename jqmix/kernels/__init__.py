"""The one room for speed: each fast path has a plain form that computes the same, and a test compares the two."""
