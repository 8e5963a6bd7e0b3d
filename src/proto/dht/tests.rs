mod many;
mod swarm;
