"""Where features lie: the layouts that training reads, one file each."""
