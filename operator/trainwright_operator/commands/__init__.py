"""The commands that need no cluster: validate, plan, convert, explain, completion."""
