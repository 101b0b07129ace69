"""What sysfs says about PCI devices; read through one door, `sysfs.SysfsRoot`."""
