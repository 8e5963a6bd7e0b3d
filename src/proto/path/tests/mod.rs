mod checks;
mod choice;
mod endpoints;
mod observed;
mod pmtu;
mod reach;
mod spray;
mod udp;
