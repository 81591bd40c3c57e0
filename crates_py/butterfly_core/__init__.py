"""Nouns that every part of Butterfly shares; the standard library only."""
