"""Messages between the rooms: pure pydantic and standard library, importable everywhere."""
