package abi

// RDMA_NL_NLDEV is the client of NETLINK_RDMA that tells of devices. A
// message's type is RDMA_NL_NLDEV<<10 | command.
const RDMA_NL_NLDEV = 5

// Commands, enum rdma_nldev_command.
const (
	RDMA_NLDEV_CMD_GET         = 1
	RDMA_NLDEV_CMD_PORT_GET    = 5
	RDMA_NLDEV_CMD_GET_CHARDEV = 15
)

// Attributes, enum rdma_nldev_attr.
const (
	RDMA_NLDEV_ATTR_DEV_INDEX        = 1  // u32
	RDMA_NLDEV_ATTR_DEV_NAME         = 2  // string
	RDMA_NLDEV_ATTR_PORT_INDEX       = 3  // u32
	RDMA_NLDEV_ATTR_NODE_GUID        = 6  // u64, host order
	RDMA_NLDEV_ATTR_NDEV_INDEX       = 50 // u32
	RDMA_NLDEV_ATTR_NDEV_NAME        = 51 // string
	RDMA_NLDEV_ATTR_CHARDEV_TYPE     = 69 // string
	RDMA_NLDEV_ATTR_CHARDEV_NAME     = 70 // string
	RDMA_NLDEV_ATTR_CHARDEV_ABI      = 71 // u64
	RDMA_NLDEV_ATTR_CHARDEV          = 72 // u64, a dev_t
	RDMA_NLDEV_ATTR_UVERBS_DRIVER_ID = 73 // u64, or u32
)
