"""Machinery that all agents share; an algorithm's own file is the place to start reading."""
