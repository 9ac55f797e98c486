"""The search: techniques × runtimes × threads, cheap checks first, under a budget."""
