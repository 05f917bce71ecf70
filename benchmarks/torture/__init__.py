"""The torture of Smalti: kills, full disks, little memory, changed data, and foreign files and requests."""
