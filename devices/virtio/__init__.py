"""virtio devices (Virtual I/O Device specification, version 1.2): queues, the PCI transport, one device a file."""
