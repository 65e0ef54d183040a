"""A core: dispatcher, queues, units and buffers joined, watched and counted."""
