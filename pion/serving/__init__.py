"""Answer many requests with one model: decode them together, and cut their text into pieces."""
