"""Work that outlives a cell: a whole list of texts and recordings, resumable after any interruption."""
