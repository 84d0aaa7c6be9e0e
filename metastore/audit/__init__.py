"""History: how its links are hashed and judged, and how it is read and verified."""
