package containers_test

func node(string) int { return 1 }
