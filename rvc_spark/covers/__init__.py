"""A song in another voice: separated, converted, polished, mixed; every stage kept, so that a change redoes little."""
