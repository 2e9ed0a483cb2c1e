"""What a process needs: files, messages, signals, other processes, plug-ins, the command line."""
