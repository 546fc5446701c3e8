"""Enrolled voices: what their recordings must be, how they are kept, and how sound made with them is marked."""
