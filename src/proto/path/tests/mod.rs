mod checks;
mod endpoints;
mod observed;
mod pmtu;
mod spray;
