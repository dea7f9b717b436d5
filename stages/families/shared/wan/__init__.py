"""What the families on Wan's classes share."""
