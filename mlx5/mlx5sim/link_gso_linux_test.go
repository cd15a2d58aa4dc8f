package mlx5sim

func setGSO(l link, on bool) { l.(*udpLink).gso = on }
