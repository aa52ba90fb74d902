package uffd

// Support is what the running kernel offers to this process.
type Support struct {
	// Device and Syscall say what the two ways to a descriptor answer, nil
	// where they work. See OpenError for what the errors mean.
	Device, Syscall error
	// UserMode says the same of userfaultfd(2) with UserModeOnly, which needs
	// no privilege but cannot serve a whole process.
	UserMode error
	// ForkEvents is nil if FeatureEventFork can be enabled.
	ForkEvents error
	// Features and Ioctls are the kernel's, zero if there is no way in.
	Features Features
	Ioctls   Ioctls
}

// Usable reports whether Open gives a descriptor that sees all faults.
func (s *Support) Usable() bool { return s.Device == nil || s.Syscall == nil }

// Probe asks the running kernel. It opens a few descriptors, registers
// nothing, and closes them again.
func Probe() Support {
	var s Support
	s.Device = try(openDevice, CloseOnExec)
	s.Syscall = try(openSyscall, CloseOnExec)
	s.UserMode = try(openSyscall, CloseOnExec|UserModeOnly)
	if info, err := offered(); err == nil {
		s.Features, s.Ioctls = info.Features, info.Ioctls
	}
	s.ForkEvents = tryForkEvents()
	return s
}

// try opens a descriptor by one of the ways and closes it.
func try(open func(OpenFlag) (int, error), flags OpenFlag) error {
	fd, err := open(flags)
	if err != nil {
		return err
	}
	return newFD(fd, false).Close()
}

func tryForkEvents() error {
	f, err := Open(CloseOnExec)
	if err != nil {
		return err
	}
	_, err = f.Enable(FeatureEventFork)
	return firstError(err, f.Close())
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
