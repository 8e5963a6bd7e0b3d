mod endpoints;
mod pmtu;
