"""Scenarios by name: presets as YAML files, generated fleets, and how a user's own file is read."""
