"""Recurrent networks and cells on packed sparse weights."""
