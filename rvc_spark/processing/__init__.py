"""Long text on its way to sound: splitting, queues and workers."""
