"""Scenarios by name: presets as YAML files, generated fleets, and the reader of a user's own file."""
