"""What the toolkit knows of the machine that it runs on: its GPUs, memory, ports, and this user's folders."""
