"""What the rooms say to each other: pure pydantic and the standard library, importable everywhere."""
