"""Stand-ins for what tests cannot have for real: servers that misbehave on demand."""
