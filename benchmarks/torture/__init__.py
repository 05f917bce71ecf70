"""What must survive: kills at any moment, files from strangers, a full disk, a process that dies among several."""
