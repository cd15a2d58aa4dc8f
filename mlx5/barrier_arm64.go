package mlx5

// toDevice orders all stores to memory before it ahead of all stores to memory
// after it, as the device sees them.
func toDevice()

// fromDevice orders the load that found an entry valid ahead of the loads of
// what the entry says.
func fromDevice()
