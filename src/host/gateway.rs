//! The router that leads to the internet: the gateway of the IPv4 default route (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};

/// The gateway of the default route of the main table, of several the one with the lowest metric. `None` when there is
/// no such route, or it leads into a tunnel, where nobody is to be asked.
///
/// # Errors
/// When the kernel cannot be asked.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn default_v4() -> io::Result<Option<Ipv4Addr>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let task = tokio::spawn(connection);
    let routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let routes: Result<Vec<_>, _> = routes.try_collect().await;
    task.abort();
    let routes = routes.map_err(io::Error::other)?;
    let best = routes.iter().filter(|route| is_default(route)).min_by_key(|route| metric(route));
    Ok(best.and_then(gateway))
}

fn is_default(route: &RouteMessage) -> bool {
    let table =
        attribute(
            route,
            |attribute| {
                if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None }
            },
        );
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    route.header.destination_prefix_length == 0 && table.unwrap_or(route.header.table.into()) == main
}

fn metric(route: &RouteMessage) -> u32 {
    let priority =
        attribute(
            route,
            |attribute| {
                if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None }
            },
        );
    priority.unwrap_or(0)
}

fn gateway(route: &RouteMessage) -> Option<Ipv4Addr> {
    attribute(route, |attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(gateway)) = attribute {
            Some(*gateway)
        } else {
            None
        }
    })
}

fn attribute<T>(route: &RouteMessage, wanted: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(wanted)
}
