"""Figures of merit of an episode, and their statistics over seeds."""
