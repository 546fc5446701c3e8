"""Sound that is not finished: chunks in order, the clock that paces them, and where they go."""
