"""The `powermean` command. It starts the rooms as processes and talks to them over REST, importing none."""
