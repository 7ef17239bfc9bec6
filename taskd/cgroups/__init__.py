"""What the kernel's control groups tell about the processes in them."""
