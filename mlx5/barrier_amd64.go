package mlx5

// toDevice orders all stores to memory before it ahead of all stores to memory
// after it, as the device sees them. The processor does that by itself, and the
// store that follows is an atomic one, which the compiler moves nothing across.
func toDevice() {}

// fromDevice orders the load that found an entry valid ahead of the loads of
// what the entry says. The processor does that by itself, and the load is an
// atomic one.
func fromDevice() {}
