"""What runs in containers, and tables."""
