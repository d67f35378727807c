"""What stays and what goes."""
