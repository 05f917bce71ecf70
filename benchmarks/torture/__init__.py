"""What must survive: kills, full disks, little memory, changed data, strangers' files and requests, and users' own
folders."""
