mod guards;
mod lookup;
mod many;
mod records;
mod rpc;
mod swarm;
mod table;
mod upkeep;
